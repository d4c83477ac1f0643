"""Plain torch, and kernels for what it is slow at: tensors in, tensors out."""
