"""Images -> shards -> the order -> samples -> batches.

The way of the data, where to begin reading each stage:

1. `sources`   where images come from; `csv_source`, `tar_source` and `reshard` are others
2. `write`     samples, shuffled by seed, become WebDataset tars
3. `manifest`  one small file a split: shards, sample counts, bytes, digests, classes
4. `counter`   random numbers that are functions of a key, never of a history
5. `order`     which samples form global batch t: integers in, integers out
6. `stores`    where shards are read from: in place, from the node's `cache`, or streamed
7. `shard`     a memory-mapped tar: sample i -> its bytes and label
8. `augment`   the view of a sample: crop and flip, keyed by (seed, pass, sample id)
9. `decode`    bytes and views -> pixels
10. `batches`  micro-batches by name
11. `loader`   the same in DataLoader workers
"""
