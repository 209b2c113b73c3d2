"""Looking inside the decoder: what the layers would say (logit lens), and how languages lie in them (PCA)."""
