//! Four `f32` at once: the module is compiled for size, so nothing is vectorised that does not say so.

/// Four values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lanes(Inner);

#[cfg(all(target_family = "wasm", target_feature = "simd128"))]
mod inner {
    use core::arch::wasm32::{
        f32x4, f32x4_add, f32x4_convert_i32x4, f32x4_extract_lane, f32x4_mul, f32x4_splat, i16x8_extend_high_i8x16,
        i16x8_extend_low_i8x16, i32x4_extend_high_i16x8, i32x4_extend_low_i16x8, u64x2, v128,
    };

    use super::Lanes;

    pub(super) type Inner = v128;

    impl Lanes {
        #[inline(always)]
        pub(in super::super) fn of([a, b, c, d]: [f32; 4]) -> Lanes {
            Lanes(f32x4(a, b, c, d))
        }

        #[inline(always)]
        pub(in super::super) fn splat(value: f32) -> Lanes {
            Lanes(f32x4_splat(value))
        }

        #[inline(always)]
        pub(in super::super) fn plus_product(self, a: Lanes, b: Lanes) -> Lanes {
            Lanes(f32x4_add(self.0, f32x4_mul(a.0, b.0)))
        }

        #[inline(always)]
        pub(in super::super) fn values(self) -> [f32; 4] {
            let Lanes(x) = self;
            [
                f32x4_extract_lane::<0>(x),
                f32x4_extract_lane::<1>(x),
                f32x4_extract_lane::<2>(x),
                f32x4_extract_lane::<3>(x),
            ]
        }

        /// Sixteen numbers of eight bits, two's complement.
        #[inline(always)]
        pub(in super::super) fn of_bytes(bytes: &[u8; 16]) -> [Lanes; 4] {
            let (&[low, high], _) = bytes.as_chunks::<8>() else { return [Lanes::splat(0.0); 4] };
            let bytes = u64x2(u64::from_le_bytes(low), u64::from_le_bytes(high));
            let (low, high) = (i16x8_extend_low_i8x16(bytes), i16x8_extend_high_i8x16(bytes));
            [
                Lanes(f32x4_convert_i32x4(i32x4_extend_low_i16x8(low))),
                Lanes(f32x4_convert_i32x4(i32x4_extend_high_i16x8(low))),
                Lanes(f32x4_convert_i32x4(i32x4_extend_low_i16x8(high))),
                Lanes(f32x4_convert_i32x4(i32x4_extend_high_i16x8(high))),
            ]
        }
    }
}

#[cfg(not(all(target_family = "wasm", target_feature = "simd128")))]
mod inner {
    use super::Lanes;

    pub(super) type Inner = [f32; 4];

    impl Lanes {
        #[inline(always)]
        pub(in super::super) fn of(values: [f32; 4]) -> Lanes {
            Lanes(values)
        }

        #[inline(always)]
        pub(in super::super) fn splat(value: f32) -> Lanes {
            Lanes([value; 4])
        }

        #[inline(always)]
        pub(in super::super) fn plus_product(self, a: Lanes, b: Lanes) -> Lanes {
            let (Lanes([s0, s1, s2, s3]), Lanes([a0, a1, a2, a3]), Lanes([b0, b1, b2, b3])) = (self, a, b);
            Lanes([s0 + a0 * b0, s1 + a1 * b1, s2 + a2 * b2, s3 + a3 * b3])
        }

        #[inline(always)]
        pub(in super::super) fn values(self) -> [f32; 4] {
            self.0
        }

        /// Sixteen numbers of eight bits, two's complement.
        #[inline(always)]
        pub(in super::super) fn of_bytes(bytes: &[u8; 16]) -> [Lanes; 4] {
            let mut lanes = [[0.0; 4]; 4];
            for (to, from) in lanes.as_flattened_mut().iter_mut().zip(bytes) {
                *to = f32::from(from.cast_signed());
            }
            lanes.map(Lanes)
        }
    }
}

use inner::Inner;

/// Sixteen sums. No arrays and no loops in here: in code for size those would go through memory.
pub(super) struct Sums(Lanes, Lanes, Lanes, Lanes);

impl Sums {
    #[inline(always)]
    pub(super) fn from([a, b, c, d]: [Lanes; 4]) -> Sums {
        Sums(a, b, c, d)
    }

    /// Adds a value times a row.
    #[inline(always)]
    pub(super) fn add(&mut self, value: f32, [a, b, c, d]: [Lanes; 4]) {
        let value = Lanes::splat(value);
        self.0 = self.0.plus_product(value, a);
        self.1 = self.1.plus_product(value, b);
        self.2 = self.2.plus_product(value, c);
        self.3 = self.3.plus_product(value, d);
    }

    #[inline(always)]
    pub(super) fn values(self) -> [[f32; 4]; 4] {
        [self.0.values(), self.1.values(), self.2.values(), self.3.values()]
    }
}

/// Up to sixteen values in four times four lanes; what is missing is 0.
pub(super) fn block(values: &[f32]) -> [Lanes; 4] {
    let mut lanes = [[0.0; 4]; 4];
    for (to, from) in lanes.as_flattened_mut().iter_mut().zip(values) {
        *to = *from;
    }
    lanes.map(Lanes::of)
}

#[cfg(test)]
mod tests {
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn sums_of_products() {
        let bytes: [u8; 16] = std::array::from_fn(|i| (i as u8).wrapping_mul(17).wrapping_sub(128));
        let start: Vec<f32> = (0..10).map(|i| i as f32).collect();
        let mut sums = Sums::from(block(&start));
        sums.add(0.5, Lanes::of_bytes(&bytes));
        sums.add(-2.0, block(&[1.0; 16]));
        let sums = sums.values();
        for (i, sum) in sums.as_flattened().iter().enumerate() {
            let start = if i < 10 { i as f32 } else { 0.0 };
            assert_eq!(*sum, start + 0.5 * f32::from(bytes[i].cast_signed()) - 2.0, "{i}");
        }
    }
}
