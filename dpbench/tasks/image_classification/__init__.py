"""Classification of images, from scratch or on a frozen model's features."""
