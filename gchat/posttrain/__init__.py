"""Stages that continue a base run: midtraining, fine-tuning, preferences and rewards."""
