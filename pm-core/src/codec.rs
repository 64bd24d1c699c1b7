//! Codecs: how a value becomes a payload.
//!
//! | codec | for |
//! |---|---|
//! | [`Postcard`] | Rust on both sides; the default |
//! | [`Json`] | workers in other languages |
//! | [`Verbatim`] | payloads that are bytes already |
//! | `Bincode` (feature `bincode`) | programs that have chosen it. RUSTSEC-2025-0141 marks all its versions unmaintained; it decodes with a limit, because without one it allocates what a hostile length claims |

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// How much of an input stands in an error.
const SUMMARY: usize = 200;

/// A codec without the types that it encodes.
pub trait Format: Clone + Debug + Send + Sync + 'static {
    /// Its name in HELLO and READY.
    fn name(&self) -> &'static str;

    /// What a payload says, in short, for errors. A codec that people cannot read gives the length.
    fn summary(&self, payload: &[u8]) -> String {
        format!("{} bytes of {}", payload.len(), self.name())
    }
}

/// A codec for values of type `T`.
pub trait Codec<T>: Format {
    /// Appends the payload of a value.
    ///
    /// # Errors
    /// [`CodecError`] for a value that the codec cannot hold.
    fn encode(&self, value: &T, payload: &mut Vec<u8>) -> Result<(), CodecError>;

    /// The value of a payload, which begins at any address: a codec that needs it aligned copies it.
    ///
    /// # Errors
    /// [`CodecError`] for a payload that is no such value.
    fn decode(&self, payload: &[u8]) -> Result<T, CodecError>;
}

/// A value or a payload that a codec cannot take.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct CodecError(pub String);

/// postcard 1: compact, and fast between Rust programs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Postcard;

/// JSON, for workers in other languages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Json;

/// Payloads as they are, under the name of the codec that they are in.
#[derive(Clone, Copy, Debug)]
pub struct Verbatim(pub &'static str);

/// bincode 2 in its standard configuration. See the [module](self) for what is known against it.
#[cfg(feature = "bincode")]
#[derive(Clone, Copy, Debug, Default)]
pub struct Bincode;

impl Format for Postcard {
    fn name(&self) -> &'static str {
        "postcard"
    }
}

impl<T: Serialize + DeserializeOwned> Codec<T> for Postcard {
    fn encode(&self, value: &T, payload: &mut Vec<u8>) -> Result<(), CodecError> {
        postcard::serialize_with_flavor(value, Append(payload)).map_err(|error| CodecError(error.to_string()))
    }

    #[inline]
    fn decode(&self, payload: &[u8]) -> Result<T, CodecError> {
        let mut from = postcard::Deserializer::from_bytes(payload);
        let failed = |error: postcard::Error| CodecError(error.to_string());
        let value = T::deserialize(&mut from).map_err(failed)?;
        match from.finalize().map_err(failed)?.len() {
            0 => Ok(value),
            left => Err(CodecError(format!("{left} bytes are left over"))),
        }
    }
}

/// Output of postcard that goes behind what is there.
struct Append<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Append<'_> {
    type Output = ();

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.0.push(data);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

impl Format for Json {
    fn name(&self) -> &'static str {
        "json"
    }

    fn summary(&self, payload: &[u8]) -> String {
        text_summary(payload)
    }
}

impl<T: Serialize + DeserializeOwned> Codec<T> for Json {
    fn encode(&self, value: &T, payload: &mut Vec<u8>) -> Result<(), CodecError> {
        serde_json::to_writer(payload, value).map_err(|error| CodecError(error.to_string()))
    }

    fn decode(&self, payload: &[u8]) -> Result<T, CodecError> {
        serde_json::from_slice(payload).map_err(|error| CodecError(error.to_string()))
    }
}

impl Format for Verbatim {
    fn name(&self) -> &'static str {
        self.0
    }

    fn summary(&self, payload: &[u8]) -> String {
        text_summary(payload)
    }
}

impl Codec<Vec<u8>> for Verbatim {
    fn encode(&self, value: &Vec<u8>, payload: &mut Vec<u8>) -> Result<(), CodecError> {
        payload.extend_from_slice(value);
        Ok(())
    }

    fn decode(&self, payload: &[u8]) -> Result<Vec<u8>, CodecError> {
        Ok(payload.to_vec())
    }
}

/// Text. A payload that is no UTF-8 is an error.
impl Codec<String> for Verbatim {
    fn encode(&self, value: &String, payload: &mut Vec<u8>) -> Result<(), CodecError> {
        payload.extend_from_slice(value.as_bytes());
        Ok(())
    }

    fn decode(&self, payload: &[u8]) -> Result<String, CodecError> {
        str::from_utf8(payload).map(str::to_string).map_err(|error| CodecError(error.to_string()))
    }
}

impl Codec<bytes::Bytes> for Verbatim {
    fn encode(&self, value: &bytes::Bytes, payload: &mut Vec<u8>) -> Result<(), CodecError> {
        payload.extend_from_slice(value);
        Ok(())
    }

    fn decode(&self, payload: &[u8]) -> Result<bytes::Bytes, CodecError> {
        Ok(bytes::Bytes::copy_from_slice(payload))
    }
}

#[cfg(feature = "bincode")]
impl Format for Bincode {
    fn name(&self) -> &'static str {
        "bincode"
    }
}

#[cfg(feature = "bincode")]
impl<T: Serialize + DeserializeOwned> Codec<T> for Bincode {
    fn encode(&self, value: &T, payload: &mut Vec<u8>) -> Result<(), CodecError> {
        bincode::serde::encode_into_std_write(value, payload, bincode::config::standard())
            .map(drop)
            .map_err(|error| CodecError(error.to_string()))
    }

    fn decode(&self, payload: &[u8]) -> Result<T, CodecError> {
        let bounded = bincode::config::standard().with_limit::<{ crate::machine::frame::MAX_PAYLOAD }>();
        let (value, read) =
            bincode::serde::decode_from_slice(payload, bounded).map_err(|error| CodecError(error.to_string()))?;
        match payload.len() - read {
            0 => Ok(value),
            left => Err(CodecError(format!("{left} bytes are left over"))),
        }
    }
}

fn text_summary(payload: &[u8]) -> String {
    let text = String::from_utf8_lossy(&payload[..payload.len().min(SUMMARY)]);
    match payload.len() {
        0..=SUMMARY => text.into_owned(),
        length => format!("{text}… ({length} bytes)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round<C: Codec<(String, Vec<u32>)>>(codec: &C) {
        let value = ("name".to_string(), vec![1, 2, 300_000]);
        let mut payload = Vec::new();
        codec.encode(&value, &mut payload).unwrap();
        assert_eq!(codec.decode(&payload), Ok(value));
        payload.push(0);
        assert!(codec.decode(&payload).is_err(), "{}: bytes left over", codec.name());
        assert!(codec.decode(&payload[..3]).is_err());
    }

    #[test]
    fn codecs_give_back_what_they_took_and_nothing_more() {
        round(&Postcard);
        round(&Json);
        #[cfg(feature = "bincode")]
        round(&Bincode);
    }

    #[test]
    fn hostile_lengths_allocate_nothing() {
        let claim = [0xff; 10];
        assert!(Codec::<Vec<u64>>::decode(&Postcard, &claim).is_err());
        #[cfg(feature = "bincode")]
        assert!(Codec::<Vec<u64>>::decode(&Bincode, &[253, 255, 255, 255, 255, 255, 255, 255, 127]).is_err());
        assert!(Codec::<serde_json::Value>::decode(&Json, &[b'['; 100_000]).is_err(), "nested 100,000 deep");
    }

    #[test]
    fn summaries_are_short() {
        assert_eq!(Postcard.summary(&[1, 2]), "2 bytes of postcard");
        assert_eq!(Json.summary(b"[1]"), "[1]");
        assert!(Json.summary(&[b'x'; 5000]).ends_with("… (5000 bytes)"));
    }
}
