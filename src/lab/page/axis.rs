//! Axes: which values are marked, and how numbers are written.

/// A number with about `digits` significant digits, without a tail of zeros; a dash for what is none.
pub(crate) fn number(value: f64, digits: i32) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    let magnitude = value.abs().log10().floor() as i32;
    let decimals = (digits - 1 - magnitude).max(0) as usize;
    let text = format!("{value:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if text.contains('.') { text.to_owned() } else { grouped(text) }
}

/// The same with the zeros at its end, for columns.
pub(crate) fn fixed(value: f64, digits: i32) -> String {
    if !value.is_finite() || value == 0.0 {
        return number(value, digits);
    }
    let magnitude = value.abs().log10().floor() as i32;
    let decimals = (digits - 1 - magnitude).max(0) as usize;
    if decimals == 0 { number(value, digits) } else { format!("{value:.decimals$}") }
}

/// A mean and half its 95 % interval, both as exact as the interval allows: `0.412 ±0.004`.
pub(crate) fn with_interval(mean: f64, half: f64) -> String {
    if !(half > 0.0 && half.is_finite() && mean.is_finite()) {
        return fixed(mean, 3);
    }
    let decimals = |value: f64, digits: i32| (digits - 1 - value.abs().log10().floor() as i32).clamp(0, 9) as usize;
    // More than four digits of a mean are not read, however sure they are.
    let most = if mean == 0.0 { 9 } else { decimals(mean, 4) };
    let decimals = decimals(half, 1).min(most);
    format!("{mean:.decimals$} ±{half:.decimals$}")
}

/// Digits before the point, in groups of three.
fn grouped(text: &str) -> String {
    let (sign, digits) = text.strip_prefix('-').map_or(("", text), |digits| ("-", digits));
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    format!("{sign}{out}")
}

/// How values become positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Axis {
    low: f64,
    high: f64,
    /// Whether equal ratios have equal lengths.
    pub(crate) log: bool,
}

impl Axis {
    /// An axis that shows all finite values, with some room around them; logarithmic if they span more than `ratio` and are
    /// positive. `from_zero` makes a linear axis begin at 0.
    pub(crate) fn showing(values: impl IntoIterator<Item = f64>, ratio: f64, from_zero: bool) -> Axis {
        let finite = values.into_iter().filter(|value| value.is_finite());
        let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if low > high || (low == 0.0 && high == 0.0) {
            return Axis { low: 0.0, high: 1.0, log: false };
        }
        if low > 0.0 && high / low > ratio {
            let room = (high / low).powf(0.06);
            return Axis { low: low / room, high: high * room, log: true };
        }
        let room = ((high - low) * 0.08).max(high.abs() * 1e-3).max(1e-9);
        let bottom = if from_zero { low.min(0.0) } else { low - room };
        Axis { low: bottom, high: high + room, log: false }
    }

    /// An axis from one value to another.
    pub(crate) fn between(low: f64, high: f64) -> Axis {
        Axis { low, high: if high > low { high } else { low + 1.0 }, log: false }
    }

    /// Its lowest and its highest value.
    pub(crate) fn ends(&self) -> [f64; 2] {
        [self.low, self.high]
    }

    /// Where a value is, 0 at the axis's beginning and 1 at its end.
    pub(crate) fn place(&self, value: f64) -> f64 {
        let f = |v: f64| if self.log { v.max(f64::MIN_POSITIVE).log10() } else { v };
        ((f(value) - f(self.low)) / (f(self.high) - f(self.low))).clamp(-0.02, 1.02)
    }

    /// About `count` round values to mark, with their words.
    pub(crate) fn ticks(&self, count: usize) -> Vec<(f64, String)> {
        let values = if self.log { self.log_ticks(count) } else { self.linear_ticks(count) };
        values.into_iter().map(|value| (value, number(value, 4))).collect()
    }

    fn linear_ticks(&self, count: usize) -> Vec<f64> {
        let raw = (self.high - self.low) / count.max(1) as f64;
        let power = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|s| s * power).into_iter().find(|s| *s >= raw).unwrap_or(raw);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step).floor() as i64;
        // A multiple of the step, without the error that adding steps up would make.
        (first..=last).map(|i| ((i as f64 * step) / power * 100.0).round() / 100.0 * power).collect()
    }

    fn log_ticks(&self, count: usize) -> Vec<f64> {
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let ticks_of = |digits: &[f64]| -> Vec<f64> {
            let all = decades.clone().flat_map(|decade| digits.iter().map(move |d| d * 10f64.powi(decade)));
            all.filter(|value| (self.low..=self.high).contains(value)).collect()
        };
        let choices = [
            ticks_of(&[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0]),
            ticks_of(&[1.0, 2.0, 3.0, 5.0]),
            ticks_of(&[1.0, 2.0, 5.0]),
            ticks_of(&[1.0, 3.0]),
        ];
        choices.into_iter().find(|ticks| ticks.len() <= count + 1).unwrap_or_else(|| ticks_of(&[1.0]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let rows = [
            (0.41234, 3, "0.412"),
            (0.4, 3, "0.4"),
            (64_204.0, 3, "64,204"),
            (6_605_046.0, 12, "6,605,046"),
            (1234.5, 2, "1,234"),
            (27.63, 3, "27.6"),
            (-0.013, 2, "-0.013"),
            (0.0, 3, "0"),
            (f64::NAN, 3, "–"),
            (f64::INFINITY, 3, "–"),
            (0.0000167, 3, "0.0000167"),
        ];
        for (value, digits, text) in rows {
            assert_eq!(number(value, digits), text);
        }
    }

    #[test]
    fn means_are_as_exact_as_their_intervals() {
        let rows = [
            (0.41234, 0.0041, "0.412 ±0.004"),
            (9.0634, 0.153, "9.1 ±0.2"),
            (0.0169, 0.00014, "0.0169 ±0.0001"),
            (1234.5, 20.0, "1234 ±20"),
            (0.6599, 0.0000061, "0.6599 ±0.0000"),
            (0.5, 0.0, "0.500"),
            (f64::NAN, f64::NAN, "–"),
        ];
        for (mean, half, text) in rows {
            assert_eq!(with_interval(mean, half), text);
        }
    }

    #[test]
    fn ticks_are_round_and_on_the_axis() {
        let words = |axis: Axis, count| axis.ticks(count).into_iter().map(|(_, text)| text).collect::<Vec<_>>();
        assert_eq!(words(Axis::between(0.0, 1.0), 5), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(words(Axis::between(0.58, 0.68), 5), ["0.6", "0.625", "0.65", "0.675"]);
        assert_eq!(words(Axis::showing([1.0, 100.0], 5.0, false), 5), ["1", "3", "10", "30", "100"]);
        for axis in [
            Axis::showing([f64::NAN], 5.0, true),
            Axis::showing([0.5, 0.5], 5.0, false),
            Axis::showing([2.0, 90.0], 5.0, false),
        ] {
            let ticks = axis.ticks(5);
            assert!(!ticks.is_empty() && ticks.len() <= 8, "{axis:?}: {ticks:?}");
            assert!(ticks.iter().all(|(v, _)| (-1e-9..=1.0 + 1e-9).contains(&axis.place(*v))), "{axis:?}: {ticks:?}");
        }
    }
}
