//! What pictures share, whatever they show: text in XML, colours, and in tests how these look.

/// Text as XML character data, not for attributes; characters that XML cannot carry become U+FFFD.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\t' | '\n' | '\r' => out.push(' '),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

pub(crate) fn hex([red, green, blue]: [u8; 3]) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// What an eye sees, for tests of colours.
#[cfg(test)]
pub(crate) mod eyes {
    /// How linear RGB looks to an eye without one kind of cone; Machado, Oliveira and Fernandes 2009, severity 1.
    pub(crate) const EYES: [[[f64; 3]; 3]; 4] = [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ];

    /// CIE 1976: 2.3 is just noticeable.
    pub(crate) fn distance(a: [f64; 3], b: [f64; 3]) -> f64 {
        (0..3).map(|i| (a[i] - b[i]).powi(2)).sum::<f64>().sqrt()
    }

    /// CIE L*a*b* of an sRGB colour as an eye sees it.
    pub(crate) fn lab(colour: [u8; 3], eye: [[f64; 3]; 3]) -> [f64; 3] {
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
