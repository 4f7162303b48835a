//! Colours, fonts, and what XML needs.
//!
//! The five colours differ from each other and from the idle background, in the lightest and in the darkest shade,
//! also for people with protanopia, deuteranopia or tritanopia: `the_colours_differ_for_every_eye` below.

use crate::picture::hex;
use crate::timeline::label::{Kind, Local};

/// Shades of a colour: 0 is the lightest.
pub(super) const SHADES: usize = 4;

/// The background of a rank.
const IDLE: [u8; 3] = [0xe8, 0xeb, 0xee];

/// The lightest and the darkest shade.
fn colours(kind: Kind) -> [[u8; 3]; 2] {
    match kind {
        Kind::F => [[0x92, 0xc8, 0xf8], [0x1a, 0x4f, 0xb0]],
        Kind::B => [[0xf9, 0x8a, 0x6c], [0xa0, 0x2c, 0x20]],
        Kind::I => [[0xec, 0xd6, 0x62], [0x8f, 0x74, 0x00]],
        Kind::W => [[0x86, 0xea, 0xb4], [0x08, 0x80, 0x5c]],
        Kind::R => [[0xb0, 0xac, 0xb4], [0x4a, 0x3a, 0x58]],
    }
}

/// The shade of a rank's parameter copy: the first is the lightest, the last the darkest.
pub(super) fn shade(local: Local) -> usize {
    match local.count {
        0 | 1 => 0,
        count => local.index * (SHADES - 1) / (count - 1),
    }
}

/// Whether a number on this shade must be light.
pub(super) fn is_dark(shade: usize) -> bool {
    shade >= SHADES / 2
}

/// The style class of a box.
pub(super) fn class(kind: Kind, shade: usize) -> String {
    format!("{}{shade}", kind.letter())
}

/// The style sheet; `number` and `half_number` are the font sizes in a box and in half a box.
pub(super) fn css(number: f64, half_number: f64) -> String {
    let mut css = format!(
        "text{{font-family:\"Helvetica Neue\",Helvetica,Arial,\"DejaVu Sans\",sans-serif;fill:#1d2733}}\
         .paper{{fill:#fff}}.idle{{fill:{}}}.tick{{stroke:#cdd3da;stroke-width:1}}\
         .title{{font-size:17px;font-weight:bold}}.facts{{font-size:13px;fill:#4b5866}}\
         .rank,.legend{{font-size:12px}}.rank{{text-anchor:end}}\
         .small,.time{{font-size:11px;fill:#5b6875}}.time{{text-anchor:middle}}\
         .task rect{{stroke:#fff;stroke-width:.8}}.task.thin rect{{stroke:none}}\
         .task .pair,.key .pair{{fill:none;stroke:#10151b;stroke-width:1.2}}\
         .n{{text-anchor:middle;font-size:{}px}}.half{{font-size:{}px}}\
         .dark{{fill:#10151b}}.light{{fill:#fff}}",
        hex(IDLE),
        px(number),
        px(half_number)
    );
    for kind in Kind::ALL {
        let [light, dark] = colours(kind);
        for shade in 0..SHADES {
            css.push_str(&format!(".{}{{fill:{}}}", class(kind, shade), hex(mix(light, dark, shade))));
        }
    }
    css
}

fn mix(light: [u8; 3], dark: [u8; 3], shade: usize) -> [u8; 3] {
    std::array::from_fn(|i| {
        let (light, dark) = (usize::from(light[i]), usize::from(dark[i]));
        // Between two bytes, so a byte.
        ((light * (SHADES - 1 - shade) + dark * shade) / (SHADES - 1)) as u8
    })
}

/// About how wide a text is in a font of `size` pixels: no font of the list is wider on digits.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    let em = |c: char| match c {
        'A'..='Z' | '_' => 0.72,
        '0'..='9' => 0.64,
        _ => 0.58,
    };
    text.chars().map(em).sum::<f64>() * size
}

/// A coordinate to a hundredth of a pixel.
pub(super) fn px(value: f64) -> String {
    let hundredths = (value * 100.0).round() as i64;
    format!("{}", hundredths as f64 / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::eyes::{distance, lab, EYES};

    #[test]
    fn the_colours_differ_for_every_eye() {
        for eye in EYES {
            for end in 0..2 {
                let mut all: Vec<[u8; 3]> = Kind::ALL.map(|kind| colours(kind)[end]).into();
                all.push(IDLE);
                for (i, &a) in all.iter().enumerate() {
                    for &b in &all[..i] {
                        let distance = distance(lab(a, eye), lab(b, eye));
                        assert!(distance > 12.0, "{} {}: {distance}", hex(a), hex(b));
                    }
                }
            }
        }
    }
}
