"""Faces in photographs and videos: found, marked, aligned and cropped as DeepfakeBench crops them."""

from r2m_jax.data.faces.landmarks import Landmarked, detect, landmarks_of, largest_face, with_forehead

__all__ = ["Landmarked", "detect", "largest_face", "landmarks_of", "with_forehead"]
