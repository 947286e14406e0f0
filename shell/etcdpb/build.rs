//! Generates messages, clients and servers from `proto/`, and keeps their description for the
//! JSON gateway. No program outside Rust is needed.

use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["rpc.proto", "lock.proto", "election.proto"], ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("etcd.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").codec_path("crate::Codec").compile_fds(files)?;
    Ok(())
}
