"""Video, image, sheet and story files; what a video does while it grows."""
