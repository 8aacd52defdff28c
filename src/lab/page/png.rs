//! A scene as a PNG file, drawn by plotters with a font of our own.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::Once;

use ::png::{BitDepth, ColorType, Encoder};
use anyhow::{Context, Result};
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::scene::{Anchor, Ink, Item, Scene, Shape};

/// Pixels of the file per unit of the scene.
const DENSITY: usize = 2;
/// Pixels drawn per pixel of the file, in each direction; their mean has smooth edges.
const OVERSAMPLING: usize = 3;
/// Font size that plotters' renderer needs for a size of 1: it scales a font's full height, not its em square.
const FONT_SCALE: f64 = 1.164;
/// How far below the point that it is given plotters' renderer sets the base line, over the full height.
const BASE_LINE: f64 = 0.49;

const FONT: &str = "DejaVu Sans";

fn register_fonts() {
    static FONTS: Once = Once::new();
    FONTS.call_once(|| {
        let fonts: [(FontStyle, &[u8]); 2] = [
            (FontStyle::Normal, include_bytes!("../font/DejaVuSans.ttf")),
            (FontStyle::Bold, include_bytes!("../font/DejaVuSans-Bold.ttf")),
        ];
        for (style, bytes) in fonts {
            assert!(register_font(FONT, style, bytes).is_ok(), "the bundled font is not a font");
        }
    });
}

/// Draws the scene into a file.
///
/// # Errors
/// The file cannot be written.
pub(super) fn write(scene: &Scene, file: &Path) -> Result<()> {
    register_fonts();
    let scale = DENSITY * OVERSAMPLING;
    let size = |length: f64, scale: usize| (length.ceil() as usize) * scale;
    let (fine_w, fine_h) = (size(scene.width, scale), size(scene.height, scale));
    let mut fine = vec![0; fine_w * fine_h * 3];
    {
        let area = BitMapBackend::with_buffer(&mut fine, (fine_w as u32, fine_h as u32)).into_drawing_area();
        area.fill(&WHITE)?;
        for item in &scene.items {
            draw(&area, item, scale as f64).with_context(|| format!("{} cannot be drawn", file.display()))?;
        }
        area.present()?;
    }
    let (w, h) = (size(scene.width, DENSITY), size(scene.height, DENSITY));
    let pixels = reduced(&fine, w, h);
    let failed = || format!("{} cannot be written", file.display());
    let mut encoder = Encoder::new(BufWriter::new(File::create(file).with_context(failed)?), w as u32, h as u32);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    let mut writer = encoder.write_header().with_context(failed)?;
    writer.write_image_data(&pixels).with_context(failed)?;
    writer.finish().with_context(failed)
}

/// Squares of fine pixels, each as its mean.
fn reduced(fine: &[u8], w: usize, h: usize) -> Vec<u8> {
    let mut pixels = Vec::with_capacity(w * h * 3);
    let count = OVERSAMPLING * OVERSAMPLING;
    for y in 0..h {
        for x in 0..w {
            for channel in 0..3 {
                let fine_value = |i: usize| {
                    let (row, column) = (y * OVERSAMPLING + i / OVERSAMPLING, x * OVERSAMPLING + i % OVERSAMPLING);
                    usize::from(fine[(row * w * OVERSAMPLING + column) * 3 + channel])
                };
                pixels.push(((0..count).map(fine_value).sum::<usize>() / count) as u8);
            }
        }
    }
    pixels
}

type Area<'a> = DrawingArea<BitMapBackend<'a>, plotters::coord::Shift>;

fn draw(area: &Area, item: &Item, scale: f64) -> Result<()> {
    let (r, g, b) = item.ink.rgb();
    let colour = RGBColor(r, g, b).mix(item.opacity);
    let pixel = |(x, y): (f64, f64)| ((x * scale).round() as i32, (y * scale).round() as i32);
    match &item.shape {
        Shape::Line { points, width, dashed } => {
            let style = colour.stroke_width((width * scale).round().max(1.0) as u32);
            let parts = if *dashed { dashes(points) } else { vec![points.clone()] };
            for part in parts {
                area.draw(&PathElement::new(part.into_iter().map(pixel).collect::<Vec<_>>(), style))?;
            }
        }
        Shape::Area { points, rim } => {
            if *rim {
                let (r, g, b) = Ink::Ground.rgb();
                let style = RGBColor(r, g, b).mix(item.opacity).stroke_width((2.0 * scale) as u32);
                let around = points.iter().chain(points.iter().take(2)).copied().map(pixel);
                area.draw(&PathElement::new(around.collect::<Vec<_>>(), style))?;
            }
            area.draw(&Polygon::new(points.iter().copied().map(pixel).collect::<Vec<_>>(), colour.filled()))?;
        }
        Shape::Text { at, text, size, anchor, bold } => {
            let horizontal = match anchor {
                Anchor::Start => HPos::Left,
                Anchor::Middle => HPos::Center,
                Anchor::End => HPos::Right,
            };
            let style = if *bold { FontStyle::Bold } else { FontStyle::Normal };
            let full = size * FONT_SCALE * scale;
            let font = FontDesc::new(FontFamily::Name(FONT), full, style);
            let style = TextStyle::from(font).color(&colour).pos(Pos::new(horizontal, VPos::Top));
            let (x, y) = pixel(*at);
            area.draw(&Text::new(text.clone(), (x, y - (full * BASE_LINE).round() as i32), style))?;
        }
    }
    Ok(())
}

/// The drawn parts of an interrupted line: 6 on, 4 off.
fn dashes(points: &[(f64, f64)]) -> Vec<Vec<(f64, f64)>> {
    const LENGTHS: [f64; 2] = [6.0, 4.0];
    let mut parts: Vec<Vec<(f64, f64)>> = Vec::new();
    let (mut which, mut left) = (0, LENGTHS[0]);
    let mut part: Vec<(f64, f64)> = points.first().copied().into_iter().collect();
    for pair in points.windows(2) {
        let (mut from, to) = (pair[0], pair[1]);
        loop {
            let distance = (to.0 - from.0).hypot(to.1 - from.1);
            if distance <= left {
                left -= distance;
                part.push(to);
                break;
            }
            let share = left / distance;
            from = (from.0 + (to.0 - from.0) * share, from.1 + (to.1 - from.1) * share);
            part.push(from);
            let done = std::mem::replace(&mut part, vec![from]);
            if which == 0 {
                parts.push(done);
            }
            which = 1 - which;
            left = LENGTHS[which];
        }
    }
    if which == 0 {
        parts.push(part);
    }
    parts.retain(|part| part.len() > 1);
    parts
}
