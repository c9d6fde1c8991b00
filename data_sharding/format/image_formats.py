"""The formats that images come in, and how their files are called."""

# Pillow's name: extensions, ours first. It knows more, but to open EPS it starts Ghostscript.
# Those are what images are stored under, since webdataset's decoders know them.
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
# Other names of these formats, and what they are stored as.
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
_HEIF = (
    "HEIC and HEIF are not read: heif-convert makes JPEGs of them (apt install libheif-examples)"
)
_JXL = "JPEG XL is not read: djxl makes JPEGs or PNGs of it (apt install libjxl-tools)"
UNREAD_IMAGES = {"heic": _HEIF, "heif": _HEIF, "hif": _HEIF, "jxl": _JXL}
