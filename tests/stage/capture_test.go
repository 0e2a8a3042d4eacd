package stage

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// recording is a capture file of Ethernet frames.
func recording(order binary.ByteOrder, frames ...[]byte) []byte {
	var out bytes.Buffer
	head := make([]byte, 24)
	order.PutUint32(head, 0xa1b2c3d4)
	order.PutUint32(head[16:], 65535)
	order.PutUint32(head[20:], 1)
	out.Write(head)
	for _, f := range frames {
		record := make([]byte, 16)
		order.PutUint32(record[8:], uint32(len(f)))
		order.PutUint32(record[12:], uint32(len(f)))
		out.Write(record)
		out.Write(f)
	}
	return out.Bytes()
}

func ethernet(kind uint16, rest ...[]byte) []byte {
	frame := binary.BigEndian.AppendUint16(make([]byte, 12), kind)
	return append(frame, bytes.Join(rest, nil)...)
}

func ip4(protocol byte, fragment uint16, payload []byte) []byte {
	h := make([]byte, 20)
	h[0], h[9] = 0x45, protocol
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
	binary.BigEndian.PutUint16(h[6:], fragment)
	copy(h[12:], []byte{10, 244, 1, 5})
	copy(h[16:], []byte{10, 244, 2, 6})
	return append(h, payload...)
}

func ip6(next byte, payload []byte) []byte {
	h := make([]byte, 40)
	h[0], h[6] = 0x60, next
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	a, b := netip.MustParseAddr("fd00:10:244:1::5").As16(), netip.MustParseAddr("fd00:10:244:2::6").As16()
	copy(h[8:], a[:])
	copy(h[24:], b[:])
	return append(h, payload...)
}

func tcp(payload string) []byte {
	h := make([]byte, 24) // with four bytes of options
	binary.BigEndian.PutUint16(h, 40000)
	binary.BigEndian.PutUint16(h[2:], 2379)
	h[12] = 6 << 4
	return append(h, payload...)
}

func udp(payload string) []byte {
	h := make([]byte, 8)
	binary.BigEndian.PutUint16(h, 51871)
	binary.BigEndian.PutUint16(h[2:], 51871)
	return append(h, payload...)
}

func TestPackets(t *testing.T) {
	from, to := netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("10.244.2.6")
	from6, to6 := netip.MustParseAddr("fd00:10:244:1::5"), netip.MustParseAddr("fd00:10:244:2::6")
	ports := func(a netip.Addr, p uint16) netip.AddrPort { return netip.AddrPortFrom(a, p) }
	for _, tt := range []struct {
		name  string
		frame []byte
		want  []Packet
	}{
		{"tcp with options", ethernet(0x0800, ip4(TCP, 0, tcp("GET"))), []Packet{{ports(from, 40000), ports(to, 2379), TCP, []byte("GET")}}},
		{"padding of a short frame is no payload", ethernet(0x0800, ip4(TCP, 0, tcp("")), make([]byte, 6)), []Packet{{ports(from, 40000), ports(to, 2379), TCP, nil}}},
		{"udp over ip6", ethernet(0x86dd, ip6(UDP, udp("x"))), []Packet{{ports(from6, 51871), ports(to6, 51871), UDP, []byte("x")}}},
		{"a later fragment has no ports", ethernet(0x0800, ip4(UDP, 185, []byte("the rest of a datagram"))), []Packet{{ports(from, 0), ports(to, 0), UDP, []byte("the rest of a datagram")}}},
		{"icmp", ethernet(0x0800, ip4(1, 0, []byte("echo it!"))), []Packet{{ports(from, 0), ports(to, 0), 1, []byte("echo it!")}}},
		{"arp is none", ethernet(0x0806, make([]byte, 28)), nil},
		{"a cut header is none", ethernet(0x0800, []byte{0x45, 0}), nil},
		{"a length beyond the frame is none", ethernet(0x0800, ip4(TCP, 0, tcp("GET"))[:30]), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
				got, err := packets(bytes.NewReader(recording(order, tt.frame)))
				if err != nil {
					t.Fatalf("packets (%s): %v", order, err)
				}
				if diff := cmp.Diff(tt.want, got, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
					t.Errorf("packets (%s) (-want +got):\n%s", order, diff)
				}
			}
		})
	}
}

func TestPacketsRefusesWhatIsNoCapture(t *testing.T) {
	whole := recording(binary.LittleEndian, ethernet(0x0800, ip4(TCP, 0, tcp("GET"))))
	wireless := bytes.Clone(whole)
	wireless[20] = 105
	for name, file := range map[string][]byte{
		"empty": nil, "text": []byte("tcpdump: permission denied, no such device"), "cut in a record": whole[:30], "cut in a frame": whole[:len(whole)-1], "not ethernet": wireless,
	} {
		if got, err := packets(bytes.NewReader(file)); err == nil {
			t.Errorf("%s: %d packets and no error", name, len(got))
		}
	}
}

func TestBetween(t *testing.T) {
	ranges := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/56")}
	for _, tt := range []struct {
		from, to string
		want     bool
	}{
		{"10.244.1.5:1", "10.244.2.6:2", true},
		{"[fd00:10:244:1::5]:1", "[fd00:10:244:2::6]:2", true},
		{"10.244.1.5:1", "10.101.77.12:2", false},
		{"10.101.77.11:51871", "10.101.77.12:51871", false},
	} {
		p := Packet{Source: netip.MustParseAddrPort(tt.from), Destination: netip.MustParseAddrPort(tt.to)}
		if got := p.Between(ranges); got != tt.want {
			t.Errorf("%s to %s between pods: %t, want %t", tt.from, tt.to, got, tt.want)
		}
	}
}

func TestQuoted(t *testing.T) {
	for text, want := range map[string]string{"tcp": "tcp", "": "''", "tcp port 2379": "'tcp port 2379'", "it's": `'it'\''s'`, "a;b": "'a;b'"} {
		if got := quoted(text); got != want {
			t.Errorf("quoted(%q) is %s, want %s", text, got, want)
		}
	}
}
