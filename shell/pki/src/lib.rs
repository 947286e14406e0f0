//! Certificate authority, leaf certificates, keys and kubeconfigs on disk.
