"""Image files on disk: found, written whole, cut into crops with their metadata.

Reading is the package root's (`image_reading`), because it travels to the Hub with the model.
"""
