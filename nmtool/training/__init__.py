"""Training with SLAYER surrogate gradients. torch and lava-dl are imported when they are needed."""
