//! One number per contender, as bars from zero; as marks on a logarithmic axis where bars would hide the small ones.

use super::axis::{Axis, number};
use super::chart::{SMALL, heading};
use super::labels;
use super::looks::Looks;
use super::scene::{Anchor, Ink, Scene, Shape};

const ROW: f64 = 22.0;

/// A contender's number.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    /// The contender.
    pub(super) contender: String,
    /// What stands before the bar.
    pub(super) label: String,
    /// The number.
    pub(super) value: f64,
    /// Its 95 % interval.
    pub(super) interval: Option<[f64; 2]>,
    /// What stands behind the bar.
    pub(super) note: String,
}

/// The bars below each other, in the order given.
pub(super) fn scene(title: &str, subtitle: &str, width: f64, bars: &[Bar], looks: &Looks) -> Scene {
    let mut scene = Scene { width, title: title.to_owned(), ..Default::default() };
    let top = heading(&mut scene, title, subtitle) + 4.0;
    let longest = |text: fn(&Bar) -> &str| bars.iter().map(|bar| labels::width(text(bar))).fold(0.0, f64::max);
    let left = longest(|bar| &bar.label) + 16.0;
    let right = width - longest(|bar| &bar.note) - 16.0;
    let bottom = top + ROW * bars.len() as f64;
    scene.height = bottom + 26.0;
    let ends = bars.iter().flat_map(|bar| bar.interval.into_iter().flatten());
    let axis = Axis::showing(bars.iter().map(|bar| bar.value).chain(ends), 12.0, true);
    let place = |value: f64| left + axis.place(value) * (right - left);
    for (value, text) in axis.ticks(((right - left) / 90.0) as usize + 1) {
        scene.rule(Ink::Grid, (place(value), top), (place(value), bottom + 3.0), 1.0);
        scene.text(Ink::Muted, (place(value), bottom + 17.0), SMALL, Anchor::Middle, false, &text);
    }
    for (index, bar) in bars.iter().enumerate() {
        let y = top + ROW * (index as f64 + 0.5);
        let ink = looks.ink(&bar.contender);
        let leads = matches!(ink, Ink::Ours | Ink::Paper);
        let words = if leads { ink } else { Ink::Text };
        scene.text(words, (left - 8.0, y + 4.0), SMALL, Anchor::End, leads, &bar.label).of_contender(&bar.contender);
        let tip = format!("{}: {}", bar.label, number(bar.value, 4));
        let from = place(axis_start(&axis));
        let to = if bar.value.is_finite() { place(bar.value) } else { from };
        if axis.log {
            let line = Shape::Line { points: vec![(from, y), (to, y)], width: 1.2, dashed: false };
            scene.add(ink, line).faint(0.4).of_contender(&bar.contender);
            let mark = looks.mark(&bar.contender).outline((to, y), 5.0);
            scene.add(ink, Shape::Area { points: mark, rim: true }).of_contender(&bar.contender).says(&tip);
        } else {
            let points = vec![(from, y - 7.0), (to, y - 7.0), (to, y + 7.0), (from, y + 7.0)];
            let opacity = if leads { 1.0 } else { 0.6 };
            scene.add(ink, Shape::Area { points, rim: false }).faint(opacity).of_contender(&bar.contender).says(&tip);
        }
        if let Some([low, high]) = bar.interval.filter(|ends| ends.iter().all(|end| end.is_finite())) {
            let points = vec![(place(low), y), (place(high), y)];
            scene
                .add(Ink::Text, Shape::Line { points, width: 1.2, dashed: false })
                .faint(0.7)
                .of_contender(&bar.contender);
        }
        let end = bar.interval.map_or(to, |[_, high]| to.max(place(high)));
        scene
            .text(Ink::Muted, (end + 9.0, y + 4.0), SMALL, Anchor::Start, false, &bar.note)
            .of_contender(&bar.contender);
    }
    scene
}

fn axis_start(axis: &Axis) -> f64 {
    if axis.log { axis.ends()[0] } else { 0.0 }
}
