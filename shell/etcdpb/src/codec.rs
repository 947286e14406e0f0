//! Messages to bytes and back, with buffers of the size that most messages have: a call costs two.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec as Seam};
use tonic_prost::ProstCodec;

/// Most messages are smaller than this, in bytes.
const BUFFER: usize = 512;
/// A stream's messages leave when so many bytes are together.
const YIELD: usize = 32 << 10;

/// The codec of all methods here.
#[derive(Debug)]
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Seam for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Seam>::Encoder;
    type Decoder = <ProstCodec<T, U> as Seam>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, YIELD))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, YIELD))
    }
}
