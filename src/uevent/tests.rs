use super::*;
use proptest::prelude::*;

fn uevent(variables: &[(&str, &str)]) -> Result<Uevent, UeventError> {
    Uevent::from_variables(|name| {
        variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    })
}

fn usb_device(action: &str, sysname: &str, class: &str) -> Option<UsbEvent> {
    let devpath = format!("/devices/pci0000:00/0000:00:14.0/usb1/{sysname}");
    uevent(&[
        ("ACTION", action),
        ("DEVPATH", &devpath),
        ("SUBSYSTEM", "usb"),
        ("DEVTYPE", "usb_device"),
        ("TYPE", class),
        ("BUSNUM", "001"),
        ("DEVNUM", "016"),
        ("SEQNUM", "1701"),
    ])
    .unwrap()
    .usb()
}

#[test]
fn leading_zeros_are_decimal() {
    let event = usb_device("bind", "1-3", "0/0/0").unwrap();
    assert_eq!(event.devnum, Some(DevNum(16)));
    assert_eq!(event.kind, EventKind::DeviceBind);
    assert_eq!(event.port.to_string(), "1-3");
}

#[test]
fn hubs_root_hubs_and_other_actions_mean_nothing() {
    assert_eq!(usb_device("bind", "1-3", "9/0/1"), None);
    assert_eq!(usb_device("add", "usb1", "0/0/0"), None);
    for action in ["change", "unbind", "move", "online", "offline", "sing"] {
        assert_eq!(usb_device(action, "1-3", "0/0/0"), None, "{action}");
    }
}

#[test]
fn an_interface_stands_for_its_device() {
    let event = uevent(&[
        ("ACTION", "add"),
        ("DEVPATH", "/devices/pci0000:00/0000:00:14.0/usb1/1-3/1-3.1/1-3.1:1.0"),
        ("SUBSYSTEM", "usb"),
        ("DEVTYPE", "usb_interface"),
        ("TYPE", "0/0/0"),
        ("SEQNUM", "1693"),
    ])
    .unwrap()
    .usb()
    .unwrap();
    assert_eq!(event.kind, EventKind::InterfaceAdd);
    assert_eq!(event.device.sysname(), "1-3.1");
    assert_eq!(event.port.to_string(), "1-3.1");
    assert_eq!(event.devnum, None);
}

#[test]
fn a_device_being_reset_has_no_number() {
    let event = uevent(&[
        ("ACTION", "bind"),
        ("DEVPATH", "/devices/x/usb1/1-3"),
        ("SUBSYSTEM", "usb"),
        ("DEVTYPE", "usb_device"),
        ("DEVNUM", "000"),
    ]);
    assert_eq!(event.unwrap().devnum, None);
}

#[test]
fn what_the_kernel_does_not_write_is_refused() {
    let base = [("ACTION", "add"), ("DEVPATH", "/devices/x")];
    assert_eq!(uevent(&base[1..]), Err(UeventError::Missing("ACTION")));
    assert_eq!(uevent(&base[..1]), Err(UeventError::Missing("DEVPATH")));
    assert_eq!(uevent(&[base[0], base[1], ("DEVNUM", "1e3")]), Err(UeventError::Value("DEVNUM")));
}

#[test]
fn packets_are_read() {
    let packet = b"remove@/devices/x/usb1/1-3\0ACTION=remove\0DEVPATH=/devices/x/usb1/1-3\0\
        SUBSYSTEM=usb\0DEVTYPE=usb_device\0TYPE=0/0/0\0SEQNUM=7\0";
    let event = Uevent::from_packet(packet).unwrap();
    assert_eq!((event.action, event.seqnum), (Action::Remove, Some(7)));
    assert_eq!(Uevent::from_packet(b"libudev\0\xfe\xed\xca\xfe"), None);
}

proptest! {
    #[test]
    fn any_packet_is_survived(packet in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Uevent::from_packet(&packet).and_then(|event| event.usb());
    }
}
