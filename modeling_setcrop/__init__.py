"""SetCrop."""
