mod link;
mod ring;
