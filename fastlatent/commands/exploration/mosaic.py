"""Images side by side, as a browser takes them."""

import base64
import io

import numpy as np


def mosaic(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Images (n, h, w, c) in rows, a white line around each, as opaque RGBA (H, W, 4) uint8."""
    n, height, width, channels = pictures.shape
    rows = -(-n // columns)
    sheet = np.full((rows, height + 2, columns, width + 2, 4), 255, np.uint8)
    for k, picture in enumerate(pictures):
        row, column = divmod(k, columns)
        shown = picture[..., :3] if channels >= 3 else picture[..., :1]
        sheet[row, 1:-1, column, 1:-1, :3] = shown
    return sheet.reshape(rows * (height + 2), columns * (width + 2), 4)


def data_uri(picture: np.ndarray) -> str:
    """An image (h, w, c) as a PNG in an address, which an <img> shows."""
    from PIL import Image

    shown = picture[..., 0] if picture.shape[2] < 3 else picture[..., :3]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(shown)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
