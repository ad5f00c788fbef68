//! A date in words, as chat templates ask for it.

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// `format` in the manner of C's `strftime`, for so many seconds since 1970, in UTC. `%-d` leaves out a
/// leading zero; directives that it does not know stay as they are.
pub(crate) fn strftime(format: &str, seconds: u64) -> String {
    let (mut day, time) = (seconds / 86_400, seconds % 86_400);
    let weekday = WEEKDAYS[((day + 4) % 7) as usize]; // 1970 began on a Thursday.
    let mut year = 1970;
    while day >= days(year) {
        day -= days(year);
        year += 1;
    }
    let of_year = day + 1;
    let mut month = 0;
    while day >= month_days(year, month) {
        day -= month_days(year, month);
        month += 1;
    }
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    let name = MONTHS[month];
    let part = |directive: char| {
        Some(match directive {
            'Y' => year.to_string(),
            'y' => format!("{:02}", year % 100),
            'm' => format!("{:02}", month + 1),
            'd' => format!("{:02}", day + 1),
            'e' => format!("{:2}", day + 1),
            'j' => format!("{of_year:03}"),
            'H' => format!("{hour:02}"),
            'I' => format!("{:02}", (hour + 11) % 12 + 1),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'p' => (if hour < 12 { "AM" } else { "PM" }).to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'B' => name.to_owned(),
            'b' | 'h' => name[..3].to_owned(),
            'F' => format!("{year}-{:02}-{:02}", month + 1, day + 1),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    };
    let mut out = String::new();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let bare = after.strip_prefix('-');
        let directive = bare.unwrap_or(after).chars().next();
        let Some((directive, text)) = directive.and_then(|d| Some((d, part(d)?))) else {
            out.push('%');
            rest = after;
            continue;
        };
        out.push_str(match bare {
            Some(_) => text.trim_start_matches(['0', ' ']),
            None => &text,
        });
        rest = &bare.unwrap_or(after)[directive.len_utf8()..];
    }
    out + rest
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days(year: u64) -> u64 {
    365 + u64::from(is_leap(year))
}

fn month_days(year: u64, month: usize) -> u64 {
    match month {
        1 => 28 + u64::from(is_leap(year)),
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // date -u -d @N '+%d %b %Y|%A|%j|%H:%M:%S|%I %p|%-d'
        for (seconds, expected) in [
            (0, "01 Jan 1970|Thursday|001|00:00:00|12 AM|1"),
            (951_782_399, "28 Feb 2000|Monday|059|23:59:59|11 PM|28"),
            (951_782_400, "29 Feb 2000|Tuesday|060|00:00:00|12 AM|29"),
            (1_735_689_599, "31 Dec 2024|Tuesday|366|23:59:59|11 PM|31"),
            (1_735_689_600, "01 Jan 2025|Wednesday|001|00:00:00|12 AM|1"),
            (4_107_542_400, "01 Mar 2100|Monday|060|00:00:00|12 AM|1"),
        ] {
            let format = "%d %b %Y|%A|%j|%H:%M:%S|%I %p|%-d";
            assert_eq!(strftime(format, seconds), expected);
        }
    }

    #[test]
    fn what_is_no_directive_stays() {
        assert_eq!(strftime("100%% of é %Q%", 0), "100% of é %Q%");
        assert_eq!(strftime("%-é%", 0), "%-é%");
    }
}
