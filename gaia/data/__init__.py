"""Token shards on disk or in a bucket, and the batches made of them."""
