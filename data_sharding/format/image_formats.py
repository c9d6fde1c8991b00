"""Formats of images, and the extensions of their files."""

# Pillow's name: extensions, ours first. It knows more, but to open EPS it starts Ghostscript.
# Images are stored under these extensions, since webdataset's decoders know them.
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
# Other extensions of these formats, and those that they are stored under.
OTHER_EXTENSIONS = {
    "jfif": "jpg",
    "jpe": "jpg",
    "mpo": "jpg",
    "apng": "png",
    "dib": "bmp",
    "pbm": "ppm",
    "pnm": "ppm",
}
IMAGE_EXTENSIONS = frozenset(
    (*OTHER_EXTENSIONS, *(name for names in EXTENSIONS.values() for name in names))
)
# Of photographs that the writer converts if it can; shards have none.
HEIF_EXTENSIONS = ("heic", "heif", "hif")
_HEIF = "HEIC and HEIF need pillow-heif: pip install 'tahoe-orchestrator[heic]'"
_JXL = "JPEG XL is not read: djxl makes JPEGs or PNGs of it (apt install libjxl-tools)"
UNREAD_IMAGES = {**dict.fromkeys(HEIF_EXTENSIONS, _HEIF), "jxl": _JXL}
