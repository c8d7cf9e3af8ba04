"""Building blocks for plugins: policy gradients, sampling, quantizers, reward functions and HTTP clients."""
