package stage

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// Packet is what a capture saw of one packet. Ports are 0 for protocols that
// have none and for later fragments.
type Packet struct {
	Source, Destination netip.AddrPort
	Protocol            byte // as IANA numbers: 6 is TCP, 17 UDP
	// Payload is what follows the transport's header, or the IP header.
	Payload []byte
}

// Protocols of packets.
const (
	TCP = 6
	UDP = 17
)

// Between reports whether both ends of the packet are in the ranges.
func (p *Packet) Between(ranges []netip.Prefix) bool {
	in := func(a netip.Addr) bool {
		for _, r := range ranges {
			if r.Contains(a) {
				return true
			}
		}
		return false
	}
	return in(p.Source.Addr()) && in(p.Destination.Addr())
}

// CaptureCommand is the command that Capture runs, as a user would type it.
func CaptureCommand(node, device, filter string) string {
	return fmt.Sprintf("cluster exec-node %s -- tcpdump -ni %s -A %s", node, device, quoted(filter))
}

// Capture runs play while tcpdump listens on a node's device, and returns what
// went by.
func (s *Stage) Capture(ctx context.Context, node, device, filter string, play func(ctx context.Context) error) ([]Packet, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := s.NodeCommand(ctx, node, "tcpdump", "-ni", device, "-s", "0", "-U", "--immediate-mode", "-w", "-", filter)
	// tcpdump ends well on an interrupt: it then writes what it still holds.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	var recorded bytes.Buffer
	cmd.Stdout = &recorded
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, fmt.Errorf("capture on %s of %s: %w", device, node, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("capture on %s of %s: %w", device, node, err)
	}
	said, listening := watch(stderr)
	stop := func() error {
		_ = cmd.Process.Signal(os.Interrupt) // already gone is what Wait tells
		text := said()
		var exit *exec.ExitError
		if err := cmd.Wait(); err != nil && !(errors.As(err, &exit) && recorded.Len() > 0) {
			return fmt.Errorf("tcpdump on %s of %s: %w: %s", device, node, err, text)
		}
		return nil
	}
	select {
	case ok := <-listening:
		if !ok {
			return nil, errors.Join(fmt.Errorf("tcpdump on %s of %s does not listen: %s", device, node, said()), stop())
		}
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), stop())
	}
	played := play(ctx)
	if err := errors.Join(played, stop()); err != nil {
		return nil, err
	}
	return packets(&recorded)
}

// watch reads what tcpdump says until it ends. The channel tells once whether it
// began to listen; said waits for the end.
func watch(r io.Reader) (said func() string, listening <-chan bool) {
	begun := make(chan bool, 1)
	done := make(chan struct{})
	var text strings.Builder
	go func() {
		defer close(done)
		told := false
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			fmt.Fprintln(&text, lines.Text())
			if !told && strings.Contains(lines.Text(), "listening on ") {
				told = true
				begun <- true
			}
		}
		if !told {
			begun <- false
		}
	}()
	var once sync.Once
	var all string
	return func() string {
		<-done
		once.Do(func() { all = text.String() })
		return all
	}, begun
}

// packets reads a capture file (draft-ietf-opsawg-pcap) with Ethernet frames.
func packets(r io.Reader) ([]Packet, error) {
	var head [24]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("read the capture's header: %w", err)
	}
	order := binary.ByteOrder(binary.LittleEndian)
	switch binary.LittleEndian.Uint32(head[:]) {
	case 0xa1b2c3d4, 0xa1b23c4d:
	case 0xd4c3b2a1, 0x4d3cb2a1:
		order = binary.BigEndian
	default:
		return nil, fmt.Errorf("not a capture: it begins with % x", head[:4])
	}
	if link := order.Uint32(head[20:]); link != 1 {
		return nil, fmt.Errorf("the capture's link type is %d and not Ethernet", link)
	}
	var out []Packet
	for {
		var record [16]byte
		if _, err := io.ReadFull(r, record[:]); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, fmt.Errorf("read packet %d of the capture: %w", len(out)+1, err)
		}
		frame := make([]byte, order.Uint32(record[8:]))
		if _, err := io.ReadFull(r, frame); err != nil {
			return nil, fmt.Errorf("read packet %d of the capture: %w", len(out)+1, err)
		}
		if p, ok := parse(frame); ok {
			out = append(out, p)
		}
	}
}

// parse reads an Ethernet frame; it is false for what is not IP.
func parse(frame []byte) (Packet, bool) {
	if len(frame) < 14 {
		return Packet{}, false
	}
	ip := frame[14:]
	var p Packet
	var from, to netip.Addr
	fragment := false
	switch kind := binary.BigEndian.Uint16(frame[12:]); {
	case kind == 0x0800 && len(ip) >= 20:
		size, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
		if size < 20 || total < size || total > len(ip) {
			return Packet{}, false
		}
		from, to = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
		fragment = binary.BigEndian.Uint16(ip[6:])&0x1fff != 0
		p.Protocol, p.Payload = ip[9], ip[size:total]
	case kind == 0x86dd && len(ip) >= 40:
		total := 40 + int(binary.BigEndian.Uint16(ip[4:]))
		if total > len(ip) {
			return Packet{}, false
		}
		from, to = netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
		p.Protocol, p.Payload = ip[6], ip[40:total]
	default:
		return Packet{}, false
	}
	var ports [2]uint16
	if !fragment && (p.Protocol == TCP || p.Protocol == UDP) && len(p.Payload) >= 8 {
		ports = [2]uint16{binary.BigEndian.Uint16(p.Payload), binary.BigEndian.Uint16(p.Payload[2:])}
		head := 8
		if p.Protocol == TCP && len(p.Payload) >= 20 {
			head = int(p.Payload[12]>>4) * 4
		}
		p.Payload = p.Payload[min(head, len(p.Payload)):]
	}
	p.Source, p.Destination = netip.AddrPortFrom(from, ports[0]), netip.AddrPortFrom(to, ports[1])
	return p, true
}
