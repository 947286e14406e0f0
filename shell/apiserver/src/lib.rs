//! TLS, HTTP and watch streams around the request pipeline.
