"""The model: one decoder, adapters, losses, sharding, and weights in and out."""
