//! Images from OCI archives, unpacked into layers for overlayfs.
