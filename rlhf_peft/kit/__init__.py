"""What plugins are built from: policy gradients, drawing and rows, reward functions, HTTP clients."""
