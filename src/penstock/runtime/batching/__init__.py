"""The queue before one servable: a pure policy, the batcher that obeys it, and joining and splitting of tensors."""
