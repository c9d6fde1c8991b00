"""Model, loss, mixup."""
