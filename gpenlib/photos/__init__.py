"""Whole photographs: faces found, restored or coloured, put back; folders and frames."""

from gpenlib.photos.enhance import EnhancedFace, EnhancedPhoto, enhance_photo
from gpenlib.photos.find import CenterFace, PhotoFace, YuNet, find_faces

__all__ = ["CenterFace", "EnhancedFace", "EnhancedPhoto", "PhotoFace", "YuNet", "enhance_photo", "find_faces"]
