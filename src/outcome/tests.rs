use super::*;
use crate::guest::hmp::GuestDeviceInfo;

fn outcome(end: Outcome) -> Report {
    let context = EventContext {
        port: "1-3".parse().unwrap(),
        devpath: "/devices/x/usb1/1-3".to_owned(),
        device: Some("Stick (46f4:0001)".to_owned()),
        vm: Some("windows".to_owned()),
        id: Some("hotplugger-1-3-16".parse().unwrap()),
    };
    Report::new(Some(context), end)
}

fn seat(slow: bool) -> GuestLocation {
    let place = GuestDeviceInfo {
        port: Some("2".to_owned()),
        speed: Some("480".parse().unwrap()),
        product: Some("Stick".to_owned()),
    };
    GuestLocation { bus: Some("xhci0.0".to_owned()), place, slow, handed: false }
}

fn times() -> Times {
    let millis = Duration::from_millis;
    Times { since_plug: millis(1234), settling: millis(1000), exchange: millis(123) }
}

#[test]
fn an_attachment_says_where_and_how_fast() {
    let outcome = outcome(Outcome::Attached { seat: seat(false), times: Some(times()) });
    assert_eq!(
        outcome.to_string(),
        "windows: port 1-3, Stick (46f4:0001): attached in the guest's port xhci0.0 2 at 480 Mb/s, \
         1.234 s after the kernel's add (1.000 s settling, 0.123 s with QEMU)"
    );
    assert_eq!(outcome.level(), Level::Info);
    let fields = outcome.fields();
    assert!(fields.contains(&("HOTPLUGGER_OUTCOME", "attached".to_owned())));
    assert!(fields.contains(&("HOTPLUGGER_DEVICE_ID", "hotplugger-1-3-16".to_owned())));
    assert!(fields.contains(&("HOTPLUGGER_EXCHANGE_USEC", "123000".to_owned())));
}

#[test]
fn what_needs_care_is_a_warning_and_what_failed_an_error() {
    assert_eq!(
        outcome(Outcome::Attached { seat: seat(true), times: Some(times()) }).level(),
        Level::Warn
    );
    assert_eq!(outcome(Outcome::Rejected("it is not authorized".to_owned())).level(), Level::Warn);
    let mut noted = outcome(Outcome::UnpluggedEarly);
    assert_eq!(noted.level(), Level::Info);
    noted.notes.push("no state".to_owned());
    assert_eq!(noted.level(), Level::Warn);
    assert!(noted.to_string().ends_with("pulled before it was attached; no state"));
    let failed = outcome(Outcome::Failed("stuck".to_owned()));
    assert_eq!((failed.level(), failed.is_success()), (Level::Error, false));
    assert_eq!(outcome(Outcome::Recorded).level(), Level::Debug);
}
