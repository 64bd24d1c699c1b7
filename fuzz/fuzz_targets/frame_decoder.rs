#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pm_core::testing::properties::frame_decoder(bytes));
