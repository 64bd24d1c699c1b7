mod claims;
mod link;
mod refused;
mod ring;
mod stalls;
