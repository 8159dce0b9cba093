use super::*;
use crate::guest::hmp::GuestDeviceInfo;

fn report(outcome: Outcome) -> Report {
    let context = EventContext {
        port: "1-3".parse().unwrap(),
        devpath: "/devices/x/usb1/1-3".to_owned(),
        device: Some("Stick (46f4:0001)".to_owned()),
        vm: Some("windows".to_owned()),
        id: Some("hotplugger-1-3-16".parse().unwrap()),
    };
    Report::new(Some(context), outcome)
}

fn location(below_native_speed: bool) -> GuestLocation {
    let device = GuestDeviceInfo {
        port: Some("2".to_owned()),
        speed: Some("480".parse().unwrap()),
        product: Some("Stick".to_owned()),
    };
    GuestLocation { bus: Some("xhci0.0".to_owned()), device, below_native_speed, via_fd: false }
}

fn times() -> Times {
    let millis = Duration::from_millis;
    Times { since_plug: millis(1234), settling: millis(1000), session: millis(123) }
}

#[test]
fn attached_line_names_guest_port_and_speed() {
    let report = report(Outcome::Attached { location: location(false), times: Some(times()) });
    assert_eq!(
        report.to_string(),
        "windows: port 1-3, Stick (46f4:0001): attached to guest port xhci0.0 2 at 480 Mb/s, \
         1.234 s after the kernel's add (1.000 s settling, 0.123 s with QEMU)"
    );
    assert_eq!(report.level(), Level::Info);
    let fields = report.fields();
    assert!(fields.contains(&("HOTPLUGGER_OUTCOME", "attached".to_owned())));
    assert!(fields.contains(&("HOTPLUGGER_DEVICE_ID", "hotplugger-1-3-16".to_owned())));
    assert!(fields.contains(&("HOTPLUGGER_SESSION_USEC", "123000".to_owned())));
}

#[test]
fn level_follows_outcome_and_warnings() {
    assert_eq!(
        report(Outcome::Attached { location: location(true), times: Some(times()) }).level(),
        Level::Warn
    );
    assert_eq!(report(Outcome::Rejected("it is not authorized".to_owned())).level(), Level::Warn);
    let mut noted = report(Outcome::UnpluggedEarly);
    assert_eq!(noted.level(), Level::Info);
    noted.warnings.push("no state".to_owned());
    assert_eq!(noted.level(), Level::Warn);
    assert!(noted.to_string().ends_with("unplugged before it was attached; no state"));
    let failed = report(Outcome::Failed("stuck".to_owned()));
    assert_eq!((failed.level(), failed.is_success()), (Level::Error, false));
    assert_eq!(report(Outcome::Recorded).level(), Level::Debug);
}
