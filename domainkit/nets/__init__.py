"""Plain torch: tensors in, tensors out."""
