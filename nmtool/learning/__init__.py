"""Learning from measured spikes with local rules: no gradient crosses from layer to layer."""
