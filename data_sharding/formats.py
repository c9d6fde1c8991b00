"""The formats that images come in, and how their files are called."""

# Pillow's name: extensions, ours first. It knows more, but to open EPS it starts Ghostscript.
EXTENSIONS = {
    "JPEG": ("jpg", "jpeg"),
    "PNG": ("png",),
    "WEBP": ("webp",),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "PPM": ("ppm", "pgm"),
    "TIFF": ("tif", "tiff"),
    "AVIF": ("avif",),
}
IMAGE_EXTENSIONS = frozenset(name for names in EXTENSIONS.values() for name in names)
