"""Images -> shards -> the order -> samples -> batches.

The way of the data, one file a stage:

1. `sources`   where images come from: class folders, scikit-learn's digits
2. `write`     samples, shuffled by seed, become WebDataset tars
3. `manifest`  one small file a split: shards, sample counts, bytes, digests, classes
4. `counter`   random numbers that are functions of a key, never of a history
5. `order`     which samples form global batch t: integers in, integers out
6. `shard`     a memory-mapped tar: sample i -> its bytes and label
7. `augment`   the view of a sample: crop and flip, keyed by (seed, epoch, sample id)
8. `decode`    bytes and view -> pixels
9. `loader`    micro-batches in DataLoader workers
"""
