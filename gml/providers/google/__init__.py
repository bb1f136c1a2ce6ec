"""Google Cloud: TPU API, Compute Engine and GKE behind gml's protocol (`provider.py`)."""
