//! Hashes of names and addresses that are the same in every build, so that VMs of different modules agree on them.

/// 64-bit FNV-1a (Fowler, Noll, Vo): short, stable across builds, good enough to tell names apart.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Tells apart the instances that a record has rows of: a row whose key is not that of the fleet's instance with its index is
/// of another one, and ignored. Two addresses of one index have the same key once in four billion cases.
pub fn address_key(address: &str) -> u32 {
    let hash = fnv1a(address.as_bytes());
    (hash ^ (hash >> 32)) as u32
}

/// Two numbers as one in which every bit of both counts.
pub fn mixed(first: u64, second: u64) -> u64 {
    finish(first.rotate_left(32) ^ second)
}

/// SplitMix64's finish (Steele, Lea and Flood 2014): near states get far keys.
pub fn finish(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
