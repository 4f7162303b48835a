//! Colours, fonts, and what XML needs.
//!
//! The five colours differ from each other and from the idle background, in the lightest and in the darkest shade,
//! also for people with protanopia, deuteranopia or tritanopia: `the_colours_differ_for_every_eye` below.

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

fn hex([red, green, blue]: [u8; 3]) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
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

/// Text as XML character data; characters that XML cannot carry become U+FFFD.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' | '\r' => out.push(' '),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How linear RGB looks to an eye without one kind of cone; Machado, Oliveira and Fernandes 2009, severity 1.
    const EYES: [[[f64; 3]; 3]; 4] = [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ];

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

    /// CIE 1976: 2.3 is just noticeable.
    fn distance(a: [f64; 3], b: [f64; 3]) -> f64 {
        (0..3).map(|i| (a[i] - b[i]).powi(2)).sum::<f64>().sqrt()
    }

    /// CIE L*a*b* of an sRGB colour as an eye sees it.
    fn lab(colour: [u8; 3], eye: [[f64; 3]; 3]) -> [f64; 3] {
        let linear = colour.map(|byte| ((f64::from(byte) / 255.0 + 0.055) / 1.055).powf(2.4));
        let apply = |m: [f64; 3], v: [f64; 3]| m[0] * v[0] + m[1] * v[1] + m[2] * v[2];
        let seen = eye.map(|row| apply(row, linear).clamp(0.0, 1.0));
        let f = |row| apply(row, seen).cbrt();
        let x = f([0.4339, 0.3762, 0.1899]);
        let y = f([0.2126, 0.7152, 0.0722]);
        let z = f([0.0177, 0.1095, 0.8728]);
        [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
    }
}
