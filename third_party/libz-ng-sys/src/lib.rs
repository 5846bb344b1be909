//! The zlib functions that `flate2` asks of `libz-ng-sys`, done by the Rust implementation `libz-rs-sys`.
//!
//! Both follow `zlib.h`: the same names, constants and memory layout. The one difference in their Rust signatures is that
//! `libz-ng-sys` has bare function pointers in `z_stream` where `libz-rs-sys` has optional ones, so the struct stands here
//! again and each function casts the pointer it was given. What each one requires is what `zlib.h` says.
#![allow(non_camel_case_types, non_snake_case, clippy::missing_safety_doc)]

use std::ffi::{c_char, c_int, c_uint, c_ulong, c_void};
use std::mem::{align_of, offset_of, size_of};

pub use libz_rs_sys::{
    internal_state, zlibVersion, Z_BLOCK, Z_BUF_ERROR, Z_DATA_ERROR, Z_DEFAULT_STRATEGY, Z_DEFLATED, Z_FINISH,
    Z_FULL_FLUSH, Z_MEM_ERROR, Z_NEED_DICT, Z_NO_FLUSH, Z_OK, Z_PARTIAL_FLUSH, Z_STREAM_END, Z_STREAM_ERROR,
    Z_SYNC_FLUSH,
};

pub type uInt = c_uint;
pub type alloc_func = unsafe extern "C" fn(*mut c_void, c_uint, c_uint) -> *mut c_void;
pub type free_func = unsafe extern "C" fn(*mut c_void, *mut c_void);

#[repr(C)]
#[derive(Copy, Clone)]
pub struct z_stream {
    pub next_in: *mut u8,
    pub avail_in: c_uint,
    pub total_in: c_ulong,
    pub next_out: *mut u8,
    pub avail_out: c_uint,
    pub total_out: c_ulong,
    pub msg: *mut c_char,
    pub state: *mut internal_state,
    pub zalloc: alloc_func,
    pub zfree: free_func,
    pub opaque: *mut c_void,
    pub data_type: c_int,
    pub adler: c_ulong,
    pub reserved: c_ulong,
}

/// The casts below are sound as long as the two structs are laid out alike.
const _: () = {
    use libz_rs_sys::z_stream as theirs;
    assert!(size_of::<z_stream>() == size_of::<theirs>());
    assert!(align_of::<z_stream>() == align_of::<theirs>());
    assert!(offset_of!(z_stream, msg) == offset_of!(theirs, msg));
    assert!(offset_of!(z_stream, zalloc) == offset_of!(theirs, zalloc));
    assert!(offset_of!(z_stream, adler) == offset_of!(theirs, adler));
};

macro_rules! forward {
    ($($name:ident($($argument:ident: $kind:ty),*);)*) => {
        $(pub unsafe extern "C" fn $name(stream: *mut z_stream, $($argument: $kind),*) -> c_int {
            unsafe { libz_rs_sys::$name(stream.cast(), $($argument),*) }
        })*
    };
}

forward! {
    deflate(flush: c_int);
    deflateEnd();
    deflateInit2_(
        level: c_int, method: c_int, window_bits: c_int, memory_level: c_int, strategy: c_int,
        version: *const c_char, stream_size: c_int
    );
    deflateParams(level: c_int, strategy: c_int);
    deflateReset();
    deflateSetDictionary(dictionary: *const u8, length: c_uint);
    inflate(flush: c_int);
    inflateEnd();
    inflateInit2_(window_bits: c_int, version: *const c_char, stream_size: c_int);
    inflateReset2(window_bits: c_int);
    inflateSetDictionary(dictionary: *const u8, length: c_uint);
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    #[test]
    fn flate2_round_trips_through_these_functions() {
        let text = b"the same bytes again and again and again ".repeat(1000);
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packer.write_all(&text).unwrap();
        let packed = packer.finish().unwrap();
        assert!(packed.len() < text.len() / 10);
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&packed[..])
            .read_to_end(&mut unpacked)
            .unwrap();
        assert_eq!(unpacked, text);
    }
}
