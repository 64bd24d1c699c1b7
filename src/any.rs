//! A transport that is chosen while the program runs.

use std::fmt;
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::task::{Context, Poll};

use pm_core::machine::frame::{Frame, Header};
use pm_core::transport::{Accept, Identity, Link, LinkError, LinkRx, LinkTx, Offer, Transport, TransportError};

/// Gives the same enum over the transports that this build has, for each of the types that belong to a transport.
macro_rules! any {
    ($($(#[$gate:meta])* $name:ident: $transport:ty, $scheme:literal;)+) => {
        /// Any of the transports that this build has, chosen by name.
        ///
        /// ```
        /// # #[cfg(feature = "uds")] {
        /// use pm::AnyTransport;
        ///
        /// let transport: AnyTransport = "uds".parse().unwrap();
        /// assert_eq!(transport.to_string(), "uds");
        /// assert!("carrier-pigeon".parse::<AnyTransport>().is_err());
        /// # }
        /// ```
        #[derive(Clone, Copy, Debug)]
        #[non_exhaustive]
        pub enum AnyTransport {
            $($(#[$gate])* #[doc = concat!("`", $scheme, "`")] $name($transport),)+
        }

        /// The manager's half of a link over any transport.
        #[derive(Debug)]
        pub enum AnyLink {
            $($(#[$gate])* #[doc = concat!("`", $scheme, "`")] $name(<$transport as Transport>::Link),)+
        }

        /// The sending half.
        #[derive(Debug)]
        pub enum AnyTx {
            $($(#[$gate])* #[doc = concat!("`", $scheme, "`")] $name(<<$transport as Transport>::Link as Link>::Tx),)+
        }

        /// The receiving half.
        #[derive(Debug)]
        pub enum AnyRx {
            $($(#[$gate])* #[doc = concat!("`", $scheme, "`")] $name(<<$transport as Transport>::Link as Link>::Rx),)+
        }

        /// Waits for a worker over any transport.
        #[derive(Debug)]
        pub enum AnyAccept {
            $($(#[$gate])* #[doc = concat!("`", $scheme, "`")] $name(<$transport as Transport>::Accept),)+
        }

        impl AnyTransport {
            /// The names of the transports that this build has.
            pub const SCHEMES: &[&str] = &[$($(#[$gate])* $scheme,)+];
        }

        impl FromStr for AnyTransport {
            type Err = UnknownTransport;

            fn from_str(name: &str) -> Result<Self, UnknownTransport> {
                match name {
                    $($(#[$gate])* $scheme => Ok(AnyTransport::$name(Default::default())),)+
                    _ => Err(UnknownTransport(name.to_string())),
                }
            }
        }

        impl Transport for AnyTransport {
            type Link = AnyLink;
            type Accept = AnyAccept;

            fn scheme(&self) -> &'static str {
                match self {
                    $($(#[$gate])* AnyTransport::$name(_) => $scheme,)+
                }
            }

            fn offer(&self) -> Result<(Offer, AnyAccept), TransportError> {
                match self {
                    $($(#[$gate])* AnyTransport::$name(transport) => {
                        transport.offer().map(|(offer, accept)| (offer, AnyAccept::$name(accept)))
                    })+
                }
            }

            fn adopt(&self, socket: OwnedFd) -> Result<AnyLink, TransportError> {
                match self {
                    $($(#[$gate])* AnyTransport::$name(transport) => transport.adopt(socket).map(AnyLink::$name),)+
                }
            }
        }

        impl Accept<AnyLink> for AnyAccept {
            async fn accept(self, peer: &Identity) -> Result<AnyLink, TransportError> {
                match self {
                    $($(#[$gate])* AnyAccept::$name(accept) => accept.accept(peer).await.map(AnyLink::$name),)+
                }
            }
        }

        impl Link for AnyLink {
            type Tx = AnyTx;
            type Rx = AnyRx;

            fn split(self) -> (AnyTx, AnyRx) {
                match self {
                    $($(#[$gate])* AnyLink::$name(link) => {
                        let (tx, rx) = link.split();
                        (AnyTx::$name(tx), AnyRx::$name(rx))
                    })+
                }
            }
        }

        impl LinkTx for AnyTx {
            fn push(&mut self, header: Header, payload: &[u8]) -> Result<bool, LinkError> {
                match self {
                    $($(#[$gate])* AnyTx::$name(tx) => tx.push(header, payload),)+
                }
            }

            fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
                match self {
                    $($(#[$gate])* AnyTx::$name(tx) => tx.poll_flush(cx),)+
                }
            }

            fn reclaim(&mut self, number: u64) -> Option<bool> {
                match self {
                    $($(#[$gate])* AnyTx::$name(tx) => tx.reclaim(number),)+
                }
            }
        }

        impl LinkRx for AnyRx {
            fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
                match self {
                    $($(#[$gate])* AnyRx::$name(rx) => rx.poll_fill(cx),)+
                }
            }

            fn next(&mut self) -> Result<Option<Frame<'_>>, LinkError> {
                match self {
                    $($(#[$gate])* AnyRx::$name(rx) => rx.next(),)+
                }
            }

            fn unread(&self) -> &[u8] {
                match self {
                    $($(#[$gate])* AnyRx::$name(rx) => rx.unread(),)+
                }
            }

            fn is_hot(&self) -> bool {
                match self {
                    $($(#[$gate])* AnyRx::$name(rx) => rx.is_hot(),)+
                }
            }

            fn spin(&mut self) -> bool {
                match self {
                    $($(#[$gate])* AnyRx::$name(rx) => rx.spin(),)+
                }
            }

            fn try_fill(&mut self) -> Result<bool, LinkError> {
                match self {
                    $($(#[$gate])* AnyRx::$name(rx) => rx.try_fill(),)+
                }
            }

            fn expect_arm(&mut self) {
                match self {
                    $($(#[$gate])* AnyRx::$name(rx) => rx.expect_arm(),)+
                }
            }

            fn arm(&mut self) -> bool {
                match self {
                    $($(#[$gate])* AnyRx::$name(rx) => rx.arm(),)+
                }
            }
        }
    };
}

any! {
    #[cfg(feature = "stdio")] Stdio: pm_transport_stdio::Stdio, "stdio";
    #[cfg(feature = "uds")] Uds: pm_transport_uds::Uds, "uds";
    #[cfg(feature = "shm")] Shm: pm_transport_shm::Shm, "shm";
}

/// A name that no transport of this build has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownTransport(String);

impl fmt::Display for UnknownTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no transport {:?}; this build has {}", self.0, AnyTransport::SCHEMES.join(", "))
    }
}

impl std::error::Error for UnknownTransport {}

impl fmt::Display for AnyTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.scheme())
    }
}
