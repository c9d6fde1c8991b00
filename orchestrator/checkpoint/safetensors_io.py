"""Read and write safetensors files; they are written tensor by tensor.

The library's own `save` builds the whole file in memory first, a second copy of the weights.
The format: https://huggingface.co/docs/safetensors#format
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8  # of the data, and so of the header


def unique_tensors(network: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Collect weights and buffers, each once, and the aliases of tied ones.

    Returns:
        The tensors by name, and the metadata of `safetensors.torch.save_model`: alias -> the name
        that is stored.
    """
    tensors, aliases, seen = {}, {"format": "pt"}, dict[tuple[object, ...], str]()
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for name, tensor in network.state_dict().items():
        address = tensor.data_ptr() or id(parameters.get(name, name))  # slices have no address
        identity = (address, tensor.shape, tensor.stride(), tensor.dtype)
        kept = seen.setdefault(identity, name) if tensor.numel() else name
        if kept == name:
            tensors[name] = tensor.detach()
        else:
            aliases[name] = kept
    return tensors, aliases


def write_safetensors(
    file: IO[bytes], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write contiguous CPU tensors."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        if tensors[name].numel():
            file.write(tensors[name].reshape(-1).view(torch.uint8).numpy().data)


def read_safetensors(network: nn.Module, path: Path) -> None:
    """Load a file of `write_safetensors` into a network; it is memory-mapped, and copied once.

    Raises:
        RuntimeError: names or shapes differ from the network's.
        SafetensorError: it is not a safetensors file.
    """
    network.load_state_dict(read_tensors(path), strict=True)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Memory-map the tensors of a file; tied ones are returned under each of their names.

    Raises:
        SafetensorError: it is not a safetensors file.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    tensors = safetensors.torch.load_file(path)
    aliases = {name: tensors[kept] for name, kept in metadata.items() if kept in tensors}
    return tensors | aliases
