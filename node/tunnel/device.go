package tunnel

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"
)

// RunDevice is the userspace WireGuard device, for kernels without one. It
// makes the link and answers configuration on its UAPI socket
// (/var/run/wireguard/<name>.sock) until ctx is done; then the link is gone.
// Where the kernel has WireGuard it only waits, so that a node may always run
// it. It knows no key until the node agent gives it one.
func RunDevice(ctx context.Context, name string, log *slog.Logger) error {
	if kernelHasWireGuard() {
		log.Info("the kernel has WireGuard: no userspace device is needed")
		<-ctx.Done()
		return nil
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("this kernel has neither WireGuard nor /dev/net/tun: load the module wireguard or tun, or set MeshConfig encryption.mode to Disabled: %w", err)
	}
	t, err := tun.CreateTUN(name, 1500-overhead)
	if err != nil {
		return fmt.Errorf("make tun device %s: %w", name, err)
	}
	logger := &device.Logger{
		Verbosef: func(string, ...any) {},
		Errorf:   func(format string, args ...any) { log.Warn("wireguard device", "error", fmt.Sprintf(format, args...)) },
	}
	dev := device.NewDevice(t, conn.NewDefaultBind(), logger)
	defer dev.Close()
	file, err := ipc.UAPIOpen(name)
	if err != nil {
		return fmt.Errorf("open WireGuard control socket of %s: %w", name, err)
	}
	uapi, err := ipc.UAPIListen(name, file)
	if err != nil {
		file.Close()
		return fmt.Errorf("listen on WireGuard control socket of %s: %w", name, err)
	}
	defer uapi.Close()
	accepted := make(chan error, 1)
	go func() { accepted <- serveUAPI(uapi, dev) }()
	if err := dev.Up(); err != nil {
		return fmt.Errorf("start WireGuard device %s: %w", name, err)
	}
	log.Info("userspace WireGuard device is up", "interface", name)
	select {
	case <-ctx.Done():
		return nil
	case <-dev.Wait():
		return fmt.Errorf("WireGuard device %s closed", name)
	case err := <-accepted:
		return fmt.Errorf("WireGuard control socket of %s: %w", name, err)
	}
}

func serveUAPI(l net.Listener, dev *device.Device) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go dev.IpcHandle(c)
	}
}
