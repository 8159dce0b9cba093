{ lib, rustPlatform }:

rustPlatform.buildRustPackage {
  pname = "hotplugger";
  version = (lib.importTOML ../../Cargo.toml).package.version;
  src = lib.cleanSource ../..;
  cargoLock.lockFile = ../../Cargo.lock;

  # They want a QEMU, and a machine to themselves.
  doCheck = false;

  installPhase = ''
    runHook preInstall
    make install DESTDIR=$out PREFIX=/usr PROGRAM=$out/bin/hotplugger \
      BINARY="$(find target -path '*/release/hotplugger' -type f | head -n 1)"
    mv $out/usr/* $out
    rmdir $out/usr
    runHook postInstall
  '';

  meta = {
    description = "Pass USB ports of the host through to QEMU/KVM guests";
    license = with lib.licenses; [ asl20 mit ];
    platforms = lib.platforms.linux;
    mainProgram = "hotplugger";
  };
}
