# What `hotplugger install` does elsewhere, as NixOS does it.
{ config, lib, pkgs, ... }:

let
  cfg = config.services.hotplugger;
  yaml = pkgs.formats.yaml { };
  machines = lib.filterAttrs (_: machine: machine ? socket) (cfg.settings.virtual_machines or { });
  # Of other names systemd wants an escaped form.
  isPlain = name: builtins.match "[a-zA-Z0-9:_][a-zA-Z0-9:_.]*" name != null;
in
{
  options.services.hotplugger = {
    enable = lib.mkEnableOption "hotplugger, which passes USB ports through to virtual machines";

    package = lib.mkOption {
      type = lib.types.package;
      description = "The package to use.";
    };

    settings = lib.mkOption {
      type = yaml.type;
      default = { };
      example = lib.literalExpression ''
        {
          virtual_machines.windows = {
            socket = "/run/windows.qmp";
            ports = [ "pci-0000:00:14.0/usb2:3" "pci-0000:00:14.0/usb3:3" ];
          };
        }
      '';
      description = ''
        The config, as docs/configuration.md has it. Virtual machines are in the order of the
        alphabet here, also where several list the same port.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [{
      assertion = lib.all isPlain (lib.attrNames machines);
      message = "services.hotplugger: names of virtual machines are letters, digits, `:`, `_` and `.` here.";
    }];

    environment.systemPackages = [ cfg.package ];
    environment.etc."hotplugger/config.yaml" = {
      source = yaml.generate "hotplugger.yaml" cfg.settings;
      # A file and no link: it must be root's on all of the way.
      mode = "0644";
    };
    services.udev.packages = [ cfg.package ];
    systemd.packages = [ cfg.package ];
    systemd.tmpfiles.packages = [ cfg.package ];

    systemd.paths = lib.mapAttrs'
      (name: machine: lib.nameValuePair "hotplugger-sync@${name}" {
        description = "Socket of the virtual machine ${name}";
        wantedBy = [ "paths.target" ];
        pathConfig.PathChanged = lib.replaceStrings [ "%" ] [ "%%" ] machine.socket;
      })
      machines;

    virtualisation.libvirtd.hooks.qemu.hotplugger =
      "${cfg.package}/etc/libvirt/hooks/qemu.d/hotplugger";
    powerManagement.resumeCommands = "${cfg.package}/bin/hotplugger sync >/dev/null || true";
  };
}
