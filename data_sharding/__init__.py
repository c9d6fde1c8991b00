"""Images -> shards -> the order -> samples -> batches.

The way of the data, where to begin reading each stage:

1. `sources.base`                where images come from; its neighbours are the kinds of sources
2. `writing.dataset_writer`      samples, shuffled by seed, become WebDataset tars
3. `format.manifest`             one small file a split: shards, counts, bytes, digests, classes
4. `rng`                         random numbers that are functions of a key, never of a history
5. `sampling.sample_order`       which samples form global batch t: integers in, integers out
6. `storage.shard_store`         where shards are read from: in place, the node's cache, by range
7. `format.shard_reader`         a memory-mapped tar: sample i -> its bytes and label
8. `transforms.crops`            the crop and flip of a sample, keyed by (seed, pass, sample id)
9. `transforms.decode`           bytes and crops -> pixels
10. `loading.datasets`           micro-batches by key
11. `loading.loader`             the same in DataLoader workers
"""
